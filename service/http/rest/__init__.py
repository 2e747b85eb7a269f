"""The operators' API under `/api`: verbs by the table in `routes`, reads in a module per noun."""
