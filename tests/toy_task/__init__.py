"""A task that exists for tests alone: what a further system costs."""
