"""Train: plans, references, targets, batches, learning, and skorch nets. The only ring that imports skorch."""
