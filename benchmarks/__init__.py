"""Each benchmark measures one promise side by side with what a user would do instead, in one run."""
