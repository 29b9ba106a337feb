"""The task lung_classification."""
