"""Speed against peers, measured in one run: `make bench`. What is measured and why: docs/performance.md."""
