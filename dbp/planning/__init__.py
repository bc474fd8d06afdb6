"""What a run would cost before it starts: the plan, its probe of the machine, its advice."""
