"""What authors write with: `@flow`, `@task`, `gather`, and the actions a flow calls."""
