"""The HTTP service without Ray: keys, limits, problems, jobs and the page."""
