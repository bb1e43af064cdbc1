package main

import (
	"fmt"
	"text/tabwriter"
)

type configCmd struct{}

// Run prints every setting with its value, its source and what it is for.
func (configCmd) Run(p *program) error {
	if err := p.settings.completeSecrets(); err != nil {
		return err
	}
	w := tabwriter.NewWriter(p.stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tVALUE\tSOURCE\tMEANING")
	for _, name := range p.settings.names {
		v := p.settings.values[name]
		shown := v.text
		switch {
		case v.secret && p.settings.secret(name) != "":
			shown = "********"
		case shown == "":
			shown = "-"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", name, shown, v.source, v.about)
	}
	return w.Flush()
}
