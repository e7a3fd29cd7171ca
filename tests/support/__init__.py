"""What several tests need: tools in forked processes, runs that are killed, what stands in runs."""
