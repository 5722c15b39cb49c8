"""What people see: lines, pictures, the page of a run, and writers."""
