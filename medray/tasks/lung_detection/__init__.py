"""The task lung_detection."""
