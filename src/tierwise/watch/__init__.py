"""Does what was promised still hold, and does the traffic still look as it did? Pure: state in, verdicts out."""
