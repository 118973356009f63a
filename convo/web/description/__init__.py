"""What the API takes and answers, as values: routes, views, samples, and the pages made from them."""
