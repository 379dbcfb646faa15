"""Learning from episodes: outcome tables, training, calibration, evaluation. Reads episodes and tables, never stores;
nothing here runs on the path of a request. Needs the `learn` extra (duckdb, scipy)."""
