"""The stages of the loop. Nothing in here knows what runs them."""
