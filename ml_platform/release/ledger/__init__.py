"""The ledger of a model's promotions, rollbacks and approvals, and its verification."""
