"""The pure heart: values and functions of values. No clock, dice, network, files, environment or globals."""
