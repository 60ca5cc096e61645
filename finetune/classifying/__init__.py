"""From the candidates of brains to cells with probabilities, part by part."""
