"""Training: references, residual sets, losses and skorch nets. The only ring that imports skorch."""
