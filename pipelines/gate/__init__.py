"""The gate between a challenger and what people use: measures of both in, a decision out."""
