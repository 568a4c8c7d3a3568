"""More replicas than one machine holds, in a simulation fed with measured costs."""
