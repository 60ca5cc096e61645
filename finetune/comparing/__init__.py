"""Networks and simple rules on the same labels, label for label."""
