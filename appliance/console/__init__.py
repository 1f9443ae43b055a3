"""What people see: screens where there is a terminal, plain lines elsewhere."""
