"""an unlearning run -> a receipt that others can check, chained to the receipts before it."""
