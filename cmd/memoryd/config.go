package main

import (
	"fmt"
	"io"
	"text/tabwriter"
)

type configCmd struct{}

// Run prints every setting with its value, its source and what it is for.
func (configCmd) Run(p *program) error {
	if err := p.settings.completeSecrets(); err != nil {
		return err
	}
	return p.settings.show(p.stdout)
}

// show prints the settings as a table, secrets masked.
func (s *settings) show(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tVALUE\tSOURCE\tMEANING")
	for _, name := range s.names {
		v := s.values[name]
		shown := v.text
		switch {
		case v.secret && s.secret(name) != "":
			shown = "********"
		case shown == "":
			shown = "-"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", name, shown, v.source, v.about)
	}
	return w.Flush()
}
