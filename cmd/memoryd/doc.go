// Command memoryd is the one binary of Claude Memory Backend: the server and what an operator does around it.
//
// Where values come from (environment, files, flags) is known in this package only; the others take plain structs.
// settings.go names every variable, serve.go wires everything by name, one file per further command. Exit codes: 0 fine,
// 1 failed, 2 wrong use or configuration.
package main
