"""The task breast_roi."""
