"""Entry point for `ray job submit -- python jobs/chaos.py ...`; same arguments as `medray chaos`."""

from medray.cli import job_main

if __name__ == "__main__":
    job_main("chaos")
