"""Error against cost of hypersolvers and of everything else that solves a field which stays as it is.

``__main__`` has the command. Read from the plan to the pages:

- what there is: ``problems``, ``contenders`` (who is compared), ``runs`` (how each is run), ``cells`` (what is measured), ``plan``;
- how it is measured: ``loading`` (fields, rows, references), ``place`` (folders and interpreters), ``measuring``, ``trials`` with
  ``ours``, ``untrained`` and ``trained``, then ``timing``, ``checks`` and ``peers`` (other packages, in an environment
  of their own);
- how rivals are made: ``stepping``, ``nets``, ``training``, ``recipes``, ``linear_solvers``, ``flow_maps``;
- what it says: ``comparing``, ``summary``, ``tables``, ``picture``.

Modules import each other relatively, and what all benchmarks share by its name: the folder above is on the path.
"""
