"""What an experiment's cells say together: arms, paired differences, one table and two pictures."""
