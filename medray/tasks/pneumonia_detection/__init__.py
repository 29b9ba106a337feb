"""The task pneumonia_detection."""
