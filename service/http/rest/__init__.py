"""The operators' API under `/api`: the application, and its calls in one module per noun."""
