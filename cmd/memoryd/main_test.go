package main

import (
	"bytes"
	"log"
	"testing"
)

// TestLibrariesAreHushed: net/http prints what an endpoint of somebody's says unasked.
func TestLibrariesAreHushed(t *testing.T) {
	var said bytes.Buffer
	log.SetOutput(&said)
	hushLibraries()
	log.Print("words of somebody else")
	if said.Len() > 0 {
		t.Errorf("%s", said.String())
	}
}
