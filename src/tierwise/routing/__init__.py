"""Does what `decide` says: opens the episode, holds, asks, settles, and writes the story down."""
