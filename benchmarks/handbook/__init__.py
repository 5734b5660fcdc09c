"""The card transactions of the Fraud Detection Handbook, as events, labels and a policy."""
