"""Who answers: the one room that calls out over HTTP, the rows of providers and prices, and the simulated provider."""
