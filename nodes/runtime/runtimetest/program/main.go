// Command program is what containers in tests run: small, static, and able to
// show from inside what the runtime gave it. It is no part of the product.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) < 2 {
		serve()
	}
	arg := func(i int) string { return strings.Join(os.Args[min(i, len(os.Args)):min(i+1, len(os.Args))], "") }
	switch os.Args[1] {
	case "serve":
		serve()
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
		forever()
	case "exit":
		code, err := strconv.Atoi(arg(2))
		check(err)
		os.Exit(code)
	case "print":
		fmt.Println(strings.Join(os.Args[2:], " "))
	case "count":
		n, err := strconv.Atoi(arg(2))
		check(err)
		for i := range n {
			fmt.Printf("line %d\n", i)
		}
	case "cat":
		content, err := os.ReadFile(arg(2))
		check(err)
		_, err = os.Stdout.Write(content)
		check(err)
	case "first": // byte of a file or device
		f, err := os.Open(arg(2))
		check(err)
		var b [1]byte
		_, err = f.Read(b[:])
		check(err)
		fmt.Println(b[0])
	case "write":
		check(os.WriteFile(arg(2), []byte(arg(3)), 0o644))
	case "env":
		fmt.Println(os.Getenv(arg(2)))
	case "hostname":
		name, err := os.Hostname()
		check(err)
		fmt.Println(name)
	case "id":
		groups, err := os.Getgroups()
		check(err)
		fmt.Println(os.Getuid(), os.Getgid(), groups)
	case "eat":
		eat()
	case "forever":
		forever()
	default:
		fmt.Fprintln(os.Stderr, "unknown command", os.Args[1])
		os.Exit(64)
	}
}

// serve runs until it is asked to end, and then ends well.
func serve() {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGTERM)
	fmt.Println("serving")
	<-asked
	os.Exit(0)
}

func forever() {
	for {
		time.Sleep(time.Hour)
	}
}

// eat uses memory until something stops it.
func eat() {
	var all [][]byte
	for {
		block := make([]byte, 1<<20)
		for i := range block {
			block[i] = 1
		}
		all = append(all, block)
		if len(all) > 1<<16 {
			os.Exit(1)
		}
	}
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
