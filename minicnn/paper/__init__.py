"""The methods of Song (2017) on the engine: its networks, saliency maps, Algorithms 1 to 4, and Proof 1."""
