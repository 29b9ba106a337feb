"""The task breast_classification."""
