"""What runs when. Nothing in here knows any machine learning."""
