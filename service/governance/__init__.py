"""What the rules are kept with: secrets, access, and later audit and tenants."""
