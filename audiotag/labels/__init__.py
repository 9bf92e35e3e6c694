"""AudioSet's labels and the ontology above them."""
