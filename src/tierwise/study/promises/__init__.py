"""Promises about quality: bounds, and the thresholds that keep them."""
