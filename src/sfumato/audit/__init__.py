"""What an audit does and writes down: the card, the protocol, and what to distrust."""
