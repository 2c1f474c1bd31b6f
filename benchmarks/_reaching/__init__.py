"""What processes start with to note which lines they reach."""
