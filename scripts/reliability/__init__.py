"""Long runs that try to break the money, each against a bar, each with a mutant that must fail. `make reliability`."""
