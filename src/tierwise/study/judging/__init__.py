"""What a policy is worth: played over outcomes, replayed over episodes, compared."""
