"""Statistics over arrays alone: differences of losses, several of them judged together, what mattered against chance."""
