"""Quality gates on a change of code or data: which models it affects, whether their gates hold, what moved."""
