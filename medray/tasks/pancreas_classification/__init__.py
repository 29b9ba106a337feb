"""The task pancreas_classification."""
