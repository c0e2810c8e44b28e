"""What fold-in is worth: a log replayed in time order, test then fold, by the code that the stream runs."""
