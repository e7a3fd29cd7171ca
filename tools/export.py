#!/usr/bin/env python
from scaleup.cli import run_verb

if __name__ == "__main__":
    run_verb("export")
